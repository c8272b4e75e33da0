"""What puts a method to work fairly: cross-fitting, scoring, isolation."""
