"""Operations that autocast casts on CUDA and MPS, by what it casts them to."""

__all__ = ["FULL", "LOWER", "WIDEST"]

# https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference
LOWER = {
    "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum",
    "linalg_multi_dot", "linear", "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention",
}  # fmt: skip
FULL = {
    "acos", "asin", "binary_cross_entropy_with_logits", "cdist", "cosh", "cosine_embedding_loss",
    "cosine_similarity", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "group_norm",
    "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "layer_norm",
    "linalg_matrix_norm", "linalg_vector_norm", "log", "log10", "log1p", "log2", "log_softmax",
    "logsumexp", "margin_ranking_loss", "mse_loss", "nll_loss", "pdist", "pow", "prod",
    "reciprocal", "renorm", "rsqrt", "sinh", "smooth_l1_loss", "soft_margin_loss", "softmax",
    "softplus", "sum", "tan", "triplet_margin_loss",
}  # fmt: skip
WIDEST = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put",
    "scatter_add", "tensordot", "vdot",
}  # fmt: skip
