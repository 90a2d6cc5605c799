"""Container images without a daemon: layers, images, layouts, archives, registries, a validator.

Images are values: a base, layers on it, a configuration. The same values give the same bytes.

    documents   the JSON documents of an image, and their digests
    layers      files to a tar, compressed, with all that could differ fixed
    image       a base and layers to a manifest
    layout      images in a folder; archive: the same in one tar that every engine loads
    validate    recomputes every digest and size
    registry    push and pull over the distribution protocol; transfers for whole images
    debian      a base from Debian's packages; bases: the other kinds
    wheels      Python packages for another machine, from a lock
    sbom        what is inside; provenance: what it was made from
    engine      a Docker engine: build, load, run
"""
