"""Problems of architecture search: in each module a ``Problem`` and its ``load_data``."""
