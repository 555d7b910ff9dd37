"""The same load on Shoal and on other servers and proxies."""
