"""What people see: tables, documents, figures."""
