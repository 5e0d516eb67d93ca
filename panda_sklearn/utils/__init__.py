"""The boundary to numpy, scikit-learn and networks.

Floor 2 of the package. Nothing here is public.
"""
