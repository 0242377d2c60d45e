"""The Gymnasium environments: `chat_env` for one conversation, `vector_env` for B of them."""
