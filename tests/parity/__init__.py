"""Our platform dialect beside the published host: requests, recorded answers, and what differs on purpose."""
