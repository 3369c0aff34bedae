"""The map: when does a prior from texts pay, by how many users there are to learn from?

Knowledge of the world pays where data is scarce, and the gain fades as behaviour accumulates. So everything is refitted
on random users' events, at several cut-offs, and tested on the same users: gain of the best arm with a language model
over the best without, by number of users, by events of the advertiser, by length of a history; and where it crosses
nothing.
"""
