"""From a file to its text: `runner.parse_document` reads it in a child process, `child` is that process.

One small module per family of formats. They run in the child only, and nothing is imported here:
the child starts in 50 ms because it loads only what its one document needs.
"""
