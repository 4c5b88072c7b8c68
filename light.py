
def run(config):
    return float(sum(config["arch_seq"]))
