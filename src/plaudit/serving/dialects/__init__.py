"""The wire dialects, one module each: requests, answers and errors as the original server writes them."""
