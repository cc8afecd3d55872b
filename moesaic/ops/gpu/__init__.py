"""Triton kernels of the operations that move rows; the matrix products between them are torch's grouped ones.

Modules have the names, signatures and results of their namesakes one folder up, so one test runs both. All but
`refusal`, which says whether they can be used, import triton when they are imported.

Triton's interpreter runs the kernels on a CPU, slowly, and exactly enough to test them: TRITON_INTERPRET=1 in the
environment before triton is first imported.
"""
