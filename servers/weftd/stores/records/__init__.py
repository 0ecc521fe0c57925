"""Records: conversations, datasets and documents, on SQLite or PostgreSQL."""
