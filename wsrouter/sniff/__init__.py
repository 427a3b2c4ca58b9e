"""The first bytes of a connection -> what they are. Bytes in, verdict (or "need more") out."""
