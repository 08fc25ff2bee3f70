"""A demonstration on built-in data: from preferences to a trained, evaluated and saved reward model."""
