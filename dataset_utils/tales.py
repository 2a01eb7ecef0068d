"""`python -m dataset_utils.tales`, the published name of `dataset_utils.synthetic_stories`."""

from dataset_utils.synthetic_stories import main

if __name__ == "__main__":
    main()
