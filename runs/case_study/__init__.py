"""Section 3 of Wu and Yu (2019): logistic regression on two classes, its margins, and the hard-margin SVM."""
