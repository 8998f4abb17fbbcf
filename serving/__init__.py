"""A thin Ray Serve layer over `recsys.inference`."""
