"""The Optuna half: plans, belief, noise, claims, sampler. It never imports torch."""
