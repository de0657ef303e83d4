"""Several processes as one: what all ranks know, and weights split over them."""
