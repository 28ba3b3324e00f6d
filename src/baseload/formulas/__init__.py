"""Numbers in, numbers out, each with its source: speed, power, cooling, money, carbon, queues, distance."""
