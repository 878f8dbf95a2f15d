"""Shared pieces of guides: two predictions of one network and what is made of them."""
