def labels(:
