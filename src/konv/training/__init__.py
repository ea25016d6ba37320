"""Training on real images with konv's layers: what ``konv train`` and ``konv predict`` are made of.

=================== ==============================================================================
``data``            the data sets: found, downloaded, checked (with ``sources``, ``idx``, ``download``)
``config``          the options of a run
``models``          the networks
``loop``            the training itself: start reading here
``checkpoint``      a run as a file
``report``          its pictures, and ``page`` the text around them
``predict``         a trained network and an image file
=================== ==============================================================================
"""
