"""INI text -> frozen values; every fault at once. The only place that knows ``configparser``."""
