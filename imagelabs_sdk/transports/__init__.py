"""Ways to carry one request to the service and one response back."""
