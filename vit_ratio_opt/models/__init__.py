"""What timm's models are made of: arguments that files may give, and models as they are."""
