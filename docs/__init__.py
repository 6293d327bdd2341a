"""Documents, and what makes one of them."""
