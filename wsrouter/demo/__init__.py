"""What a first try needs and a production router does not: echo backends and throwaway certificates.

certificates    a short-lived CA and one certificate for each demonstration name
backends        WebSocket echo servers on 127.0.0.1, one for each port of an ``[echo NAME]`` section
"""
