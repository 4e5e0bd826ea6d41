//! Tests of the whole core: messages in, state and effects out.
