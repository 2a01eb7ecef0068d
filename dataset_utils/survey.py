"""`python -m dataset_utils.survey`, the published name of `dataset_utils.corpus_stats`."""

from dataset_utils.corpus_stats import main

if __name__ == "__main__":
    main()
