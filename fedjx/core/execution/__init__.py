"""The executors: a program in one compiled function, or streamed over chunks of the cohort."""
