"""Measures of retrieval and of answers, on files of questions whose passages are known."""
