"""What lives in the router now: sessions and tunnels, their facts and counts, and how each ended."""
