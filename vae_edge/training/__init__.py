"""Fitting, generating and evaluating: loops over data around the model."""
