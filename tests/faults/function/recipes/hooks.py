def preproces(inputs): return inputs
