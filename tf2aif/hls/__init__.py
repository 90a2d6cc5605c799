"""The FPGA path by high-level synthesis: stages, fixed-point types, emulation, HLS project.

`stages` is what a network is made of here, `lower` makes it from the layers of a network, `types`
gives each stage its fixed-point types, `emulate` computes what they compute, bit by bit, and
`project` and `compiler` write the HLS project and compile its C simulation.
"""
