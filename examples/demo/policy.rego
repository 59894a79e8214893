package spacelift
sample { true }
