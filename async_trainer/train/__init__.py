"""The Trainer, and what its loop works with."""
