"""ChatGym's environments in the shape that other libraries want."""
