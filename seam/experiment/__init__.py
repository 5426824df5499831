"""An experiment as a whole: parameters, the graph of jobs, what each result was made from, and the results."""
