# What AWS KMS sees of the proxies. The first four alarms are those that AWS recommends, with its numbers:
# https://docs.aws.amazon.com/kms/latest/developerguide/xks-alarms.html
# Names and dimensions: https://docs.aws.amazon.com/kms/latest/developerguide/monitoring-cloudwatch.html

locals {
  key_stores = var.custom_key_store_id == null ? {} : { this = var.custom_key_store_id }

  # Each alarm says where it is explained.
  runbook = "docs/runbook.md#the-alarm"

  # Errors and latency have a series for each operation and exception: the queries take all of the key store's.
  queries = {
    retryable-errors = {
      description = "More than 5 retryable errors in a minute: timeouts, throttling, faults of a token, or the network."
      select      = "SUM(XksProxyErrors)"
      where       = "ErrorType = 'Retryable'"
      threshold   = 5
      period_secs = 60
    }
    non-retryable-errors = {
      description = "More than 5 errors in a minute that do not pass by themselves: credentials, keys, policies, certificates."
      select      = "SUM(XksProxyErrors)"
      where       = "ErrorType = 'Non-retryable'"
      threshold   = 5
      period_secs = 60
    }
    latency = {
      description = "Answers take 200 ms on average of 5 minutes: AWS KMS gives up at 250."
      select      = "AVG(XksProxyLatency)"
      where       = "KeySpec = 'SYMMETRIC_DEFAULT'"
      threshold   = 200
      period_secs = 300
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "certificate" {
  for_each = local.key_stores

  alarm_name          = "${var.name}-certificate"
  alarm_description   = "Less than 10 days until the certificate ends, and with it all that its key store protects. ${local.runbook}-certificate"
  namespace           = "AWS/KMS"
  metric_name         = "XksProxyCertificateDaysToExpire"
  dimensions          = { CustomKeyStoreId = each.value, CertificateName = var.private_dns_name }
  statistic           = "Minimum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "LessThanThreshold"
  threshold           = 10
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "query" {
  for_each = length(local.key_stores) == 0 ? {} : local.queries

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = "${each.value.description} ${local.runbook}-${each.key}"
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.threshold
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags

  metric_query {
    id          = "q1"
    period      = each.value.period_secs
    return_data = true
    expression = join(" ", [
      "SELECT ${each.value.select} FROM \"AWS/KMS\"",
      "WHERE ${each.value.where} AND CustomKeyStoreId = '${var.custom_key_store_id}'",
    ])
  }
}

resource "aws_cloudwatch_metric_alarm" "unavailable" {
  for_each = local.key_stores

  alarm_name          = "${var.name}-unavailable"
  alarm_description   = "The proxies say for 10 minutes that a token cannot serve; the others may carry its load. ${local.runbook}-unavailable"
  namespace           = "AWS/KMS"
  metric_name         = "XksExternalKeyManagerStates"
  dimensions          = { CustomKeyStoreId = each.value, XksExternalKeyManagerState = "Unavailable" }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 2
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "credential" {
  for_each = local.key_stores

  alarm_name          = "${var.name}-credential"
  alarm_description   = "The SigV4 credential is ${var.credential_max_age_days} days old. ${local.runbook}-credential"
  namespace           = "AWS/KMS"
  metric_name         = "XksProxyCredentialAge"
  dimensions          = { CustomKeyStoreId = each.value }
  statistic           = "Maximum"
  period              = 86400
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.credential_max_age_days
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}
