"""Questions whose answers lead a number to a peer: reach lists, ENUM (DNS), number portability (HTTP).

Asked here, decided in `gateway`: what an answer means, and which peer it leads to, is the configuration's to say. Every
failure is LookupUnavailable, which is temporary for whoever sends. Answers are kept within bounds of number and age.
"""
