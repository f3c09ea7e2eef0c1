"""What users have today, each behind the same few methods, so that one set of trials measures all of them."""
