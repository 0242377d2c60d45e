"""Files on disk: atomic writes, the SQLite cache of wordings, and the stored models."""
