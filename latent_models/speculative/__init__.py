"""Speculative decoding: a draft model, and the verification of its drafts. Nothing else in latent_models imports it."""
