"""The ladder of predictors: who names a user's next advertiser best, on any canonical tables."""
