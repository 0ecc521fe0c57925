"""The versions of the models that Triton serves: publishing, going back, watching."""
