"""A site that runs as it is: one agent, its page and its admin. Take it apart."""
