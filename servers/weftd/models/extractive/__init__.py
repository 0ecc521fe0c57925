"""A model without a network: it answers with sentences of the passages, word for word, and cites them."""
