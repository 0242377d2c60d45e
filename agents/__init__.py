"""The agents that come with ChatGym, registered through the same entry point as anybody's."""
