"""What a run leaves: adapter, merged model, card, receipt and history."""
