"""Search methods: every module in this folder is one method, found by its file name.

A method is one function

    def preferences(problem: Problem) -> numpy.ndarray   # [layers, weight bits, activation bits], higher is better

and `seam.policy.assign` turns the table into the best policy within the budget. A module may set SPEND, the least share
of the budget that its policies use, in place of the parameter `spend`; RAISE = False, where bits that cost nothing must
stay as its preferences have them (`raise_free`); QUANTIZERS = False, where it calls none, so that no kernels need be
there for them; and NETWORK = False, where the layers' sizes are all it needs: with `proxy: none` it is then given no
network, and its job does not load torch. IMAGES is how many images a method looks at that does not look at all of the
proxy's; its option `images` changes that. CLASSIFIER = True asks for a new classifier, for the proxy's classes, where
these are not the target's.
"""
